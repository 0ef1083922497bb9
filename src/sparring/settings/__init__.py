"""The settings of a run, each with its meaning and unit: one pydantic tree, `RunConfig` at its root."""

from sparring.settings.base import Section
from sparring.settings.game import (
    ChallengeConfig,
    GameConfig,
    PerceptionConfig,
    QualityConfig,
    RewardConfig,
    RoleConfig,
)
from sparring.settings.health import HealthConfig
from sparring.settings.model import LoraConfig, ModelConfig, VisionConfig
from sparring.settings.run import (
    CheckpointConfig,
    EvaluationConfig,
    ExportConfig,
    LearnerConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
)

__all__ = [
    "ChallengeConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GameConfig",
    "HealthConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "ParallelConfig",
    "PerceptionConfig",
    "QualityConfig",
    "RewardConfig",
    "RoleConfig",
    "RolloutConfig",
    "RunConfig",
    "Section",
    "VisionConfig",
]
