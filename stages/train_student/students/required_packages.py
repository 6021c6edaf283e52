"""What some settings of a student need installed beside the dependencies. Imports none of it."""

from importlib.util import find_spec

from stages.train_student.students.registry import StudentSettings


def require_packages(settings: StudentSettings) -> None:
    """Raise ValueError where a package that ``settings`` need is not installed."""
    for key, package in settings.extra_packages.items():
        found = find_spec(package)
        if found is None or found.origin is None:  # or there is only a directory of this name
            value = getattr(settings, key)
            raise ValueError(
                f"train_student.student.{key}: {value!r} needs the package {package}, which is not "
                f"installed. Install it with `pip install {package}`, or this package with its "
                f"extra {value!r}, or choose another value."
            )
