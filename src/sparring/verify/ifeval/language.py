"""Which language a text is in, by langdetect (optional)."""

from __future__ import annotations

from functools import cache
from typing import Any


def detected(text: str) -> str | None:
    """A text's language as langdetect has it ("en", "zh-cn"); None where it finds none (digits alone, say).

    Raises:
        ValueError: langdetect is not installed.
    """
    factory = _factory()
    from langdetect import LangDetectException

    detector = factory.create()
    try:
        detector.append(text)
        return str(detector.detect())
    except LangDetectException:
        return None


@cache
def _factory() -> Any:
    """A factory of our own, with a seed: langdetect draws, and its own factory is everybody's."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError as error:
        raise ValueError(
            "an instruction about the answer's language needs the langdetect library: pip install 'sparring[verify]'"
        ) from error
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory
