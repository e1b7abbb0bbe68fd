"""Writing a result file whole or not at all."""

from trimtab.files import check_writable, write_whole

__all__ = ["check_writable", "write_whole"]
