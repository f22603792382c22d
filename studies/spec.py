"""What a study is written with: `from studies.spec import StudySpec, TaskSpec`."""

from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant

__all__ = ["Smoke", "StudySpec", "TaskSpec", "Variant"]
