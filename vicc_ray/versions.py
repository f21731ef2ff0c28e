"""Which versions of other packages the tests have run with, and what of the installed ones is outside of that."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# Package -> lowest and highest version that the tests ran with: those of `make test-lowest` and of requirements.lock. What
# these decide is measured or leans on more than is documented: Ray's private names, the pictures of PyAV, numbers.
TESTED = {
    "ray": ("2.60.0", "2.60.0"),
    "torch": ("2.11.0", "2.15.0"),
    "torchvision": ("0.26.0", "0.29.2"),
    "av": ("18.1.0", "19.0.2"),
    "numpy": ("2.0.0", "2.5.5"),
}


def untested() -> list[str]:
    """A phrase for each installed package that is outside of `TESTED`; later corrections of a tested version are not."""
    from packaging.version import Version

    found = []
    for name, (lowest, highest) in TESTED.items():
        try:
            here = Version(version(name))
        except PackageNotFoundError:
            continue
        if here < Version(lowest) or here.release[:2] > Version(highest).release[:2]:
            span = lowest if lowest == highest else f"{lowest} to {highest}"
            found.append(f"{name} {here.public} (tested: {span})")
    return found
