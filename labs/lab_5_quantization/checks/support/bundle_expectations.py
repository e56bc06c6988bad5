"""What the checks of task 5.7 ask again and again: taken or refused, untouched, whole."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.device_bundles import NAME, Workshop
from support.watched import watched

from shared.device.layout import Component, Limits, Manifest, Refused
from shared.grading.expect import expect, expect_equal, expect_raises, fail, plain, show


def build(learner: Any, workshop: Workshop, archive: Path, components: list[Component]) -> Manifest:
    """The learner's bundle of these components, in a folder that is there."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    return learner.build(
        archive, name=NAME, version="1.2.0", components=components, private_key=workshop.private
    )


def watched_install(
    learner: Any, archive: Path, dest: Path, workshop: Workshop, then: Callable[[int, str], None]
) -> Any:
    """Install while something happens before each step."""
    with watched(dest, then=then):
        return learner.install(archive, dest, workshop.public)


def plain_installed(found: Any) -> list[Any]:
    """The fields of an `Installed`, to compare."""
    return [found.name, found.version, found.previous, str(found.folder)]


def serial(sbom: bytes) -> str | None:
    """The serial number of an SBOM."""
    return json.loads(sbom).get("serialNumber")


def first_difference(one: bytes, two: bytes) -> str:
    """Where two byte strings part, in words."""
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
    if at is None:
        return f"in length, {len(one):,} and {len(two):,} bytes"
    return f"at byte {at:,}: {one[at - 20 : at + 20]!r} and {two[at - 20 : at + 20]!r}"


def current_version(dest: Path) -> str | None:
    """The version that installed.json names as the current one; None if it can't be read."""
    try:
        return json.loads((dest / "installed.json").read_text(encoding="utf-8"))["current"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder by relative path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def expect_taken(learner: Any, path: str, content: bytes) -> None:
    """Fail if a good file is refused."""
    try:
        learner.check_format(path, io.BytesIO(content), Limits())
    except Refused as error:
        fail(
            observed=f"check_format refused a good {path}: {error.reason}",
            expected="it to be taken",
            why="A rule that refuses good files is switched off, and then none is left.",
            hint="too-strict",
        )


def expect_refused(
    learner: Any,
    path: str,
    content: bytes,
    what: str,
    *,
    why: str,
    hint: str,
    limits: Limits | None = None,
) -> None:
    """Fail unless `check_format` refuses a file by its name."""
    error = expect_raises(
        Refused,
        lambda: learner.check_format(path, io.BytesIO(content), limits or Limits()),
        doing=what,
        why=why,
        hint=hint,
    )
    expect_equal(
        getattr(error, "member", None),
        path,
        what="the member it is refused for",
        why=why,
        hint=hint,
    )


def refusal(
    learner: Any, workshop: Workshop, archive: Path, limits: Limits | None = None
) -> Refused | None:
    """What `verify` refuses an archive for; None if it takes it."""
    try:
        learner.verify(archive, workshop.public, limits=limits)
    except Refused as error:
        return error
    except NotImplementedError:
        raise
    except Exception as error:
        fail(
            observed=f"verify broke with {type(error).__name__}: {error}",
            expected="Refused, with the member's name",
            why="An installer that breaks leaves somebody at the branch with a traceback, and no "
            "idea whether the stick is bad or the program.",
            hint="as-an-attacker",
        )
    return None


def expect_verify_refuses(
    learner: Any, workshop: Workshop, archive: Path, name: str, what: str, *, why: str, hint: str
) -> None:
    """Fail unless an archive is refused for the member `name`."""
    error = refusal(learner, workshop, archive)
    expect(
        error is not None and error.member == name,
        observed=f"{what}: "
        + (
            "the bundle is taken"
            if error is None
            else f"Refused for {show(plain(error.member))} ({error.reason})"
        ),
        expected=f"Refused for {name!r}",
        why=why,
        hint=hint,
    )


def expect_install_refuses(
    learner: Any, workshop: Workshop, archive: Path, dest: Path, name: str, what: str, *, hint: str
) -> None:
    """Fail unless `install` refuses an archive before it has changed anything."""
    before = tree(dest)
    with watched(dest) as watch:
        error = expect_raises(
            Refused,
            lambda: learner.install(archive, dest, workshop.public),
            doing=what,
            why="The device must not run it.",
            hint=hint,
        )
    expect_equal(
        getattr(error, "member", None),
        name,
        what=f"the member that a bundle is refused for ({what})",
        why="Somebody has to tell the maker what is wrong with it.",
        hint=hint,
    )
    expect(
        not watch.changes and tree(dest) == before,
        observed=f"{what}: refused, but first {', '.join(watch.changes[:2])}",
        expected="no change on the device",
        why="What was written before it was verified can be run before it was verified.",
        hint=hint,
    )


def expect_whole(
    learner: Any,
    dest: Path,
    contents: dict[str, dict[str, bytes]],
    what: str,
    versions: set[str],
) -> None:
    """Fail unless the device runs one of `versions`, and each version that it has is whole.

    It has those whose folders have a version for a name, and those that it says it has: the
    current and the previous one.
    """
    why = "The branch opens at nine, whatever happened at night."
    try:
        now = learner.installed(dest)
    except Exception as error:
        fail(
            observed=f"installed() breaks with {type(error).__name__}: {error}, after {what}",
            expected=f"one of {sorted(versions)}",
            why=why,
            hint="one-step",
        )
    version = plain(getattr(now, "version", None))
    expect(
        version in versions,
        observed=f"after {what} the device runs {version}",
        expected=f"{' or '.join(sorted(versions))}",
        why=why,
        hint="one-step",
    )
    folders = [p for p in (dest / "versions").iterdir() if not p.name.startswith(".")]
    for folder in folders:
        found = tree(folder)
        wanted = contents.get(folder.name, {}) | {
            "site/branch_runtime/__init__.py": b'"""Runs the router."""\nANSWER = 42\n'
        }
        broken = sorted(p for p, c in wanted.items() if found.get(p) != c)
        expect(
            not broken and folder.name in contents,
            observed=f"after {what}, {folder.name} lacks {', '.join(broken[:3])}",
            expected="each folder that has a version for its name to be whole",
            why=why,
            hint="one-step",
        )
    expect(
        version in [f.name for f in folders],
        observed=f"after {what} the device should run {version}, whose folder is not there",
        expected="it to be there",
        why=why,
        hint="one-step",
    )
    previous = plain(getattr(now, "previous", None))
    expect(
        previous is None or previous in [f.name for f in folders],
        observed=f"after {what} the device runs {version}, and its previous version {previous} is "
        "not there",
        expected="it to be there as long as installed.json names it",
        why="It is the way back, and whoever needs it finds out at night that it leads nowhere.",
        hint="old-versions",
    )
