"""What a reward model is: how it scores an answer, how well it ranks pairs, the guide folder, the model card."""

from trimtab.rewards.artifact import (
    GUIDE_FILE,
    BaseRef,
    DataRef,
    GuideManifest,
    Objective,
    check_base,
    check_folder,
    check_lora_config,
    check_objectives,
    check_weights,
    load_adapter_config,
    load_adapter_tensors,
    load_guide_model,
    read_manifest,
    save_guide,
)

__all__ = [
    "GUIDE_FILE",
    "BaseRef",
    "DataRef",
    "GuideManifest",
    "Objective",
    "check_base",
    "check_folder",
    "check_lora_config",
    "check_objectives",
    "check_weights",
    "load_adapter_config",
    "load_adapter_tensors",
    "load_guide_model",
    "read_manifest",
    "save_guide",
]
