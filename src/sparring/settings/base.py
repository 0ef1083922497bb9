"""What every group of settings shares."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

# The device types are torch's; named here so that a setting is checked without importing it.
DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|hpu|npu|mtia|xla)(:\d+)?")


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def known_device(name: str) -> str:
    """The name, where torch has such a device. Raises ValueError."""
    if not DEVICE.fullmatch(name):
        raise ValueError(f"there is no torch device {name!r}; it reads auto, cpu, cuda, cuda:1, mps or xpu")
    return name


def listed(value: Any) -> Any:
    """One name, or several with commas between, as a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value
