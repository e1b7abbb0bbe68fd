"""The page: static files from memory, which load nothing from anywhere else."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(include_in_schema=False)
