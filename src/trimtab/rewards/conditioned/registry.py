"""Making a method known to PEFT, so that ``PeftModel.from_pretrained`` loads its folders."""

from __future__ import annotations

from typing import Any


def register(name: str, config_class: type[Any], model_class: type[Any], prefix: str) -> None:
    """Register a PEFT method under a new type; doing so twice is harmless.

    ``register_peft_method`` takes only names that PEFT's enumeration of types has, and an enumeration cannot be
    extended in a documented way, so the member is added to it first.

    Args:
        name: lower-case name; the type in ``adapter_config.json`` is the same in capitals.
        config_class: the method's ``PeftConfig``.
        model_class: the method's ``BaseTuner``.
        prefix: what the names of its tensors start with.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import register_peft_method

    if add_peft_type(name.upper()) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=prefix)


def add_peft_type(name: str) -> Any:
    """Return the member of ``peft.PeftType`` called ``name``, added if it is not there."""
    from peft import PeftType

    kind: Any = PeftType
    if name not in kind.__members__:
        member = str.__new__(kind, name)
        member._name_ = name
        member._value_ = name
        setattr(kind, name, member)
        kind._member_names_.append(name)
        kind._member_map_[name] = member
        kind._value2member_map_[name] = member
    return kind[name]
