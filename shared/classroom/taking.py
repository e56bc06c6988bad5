"""Take one learner's labs out of all that they handed in."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection
from contextlib import closing, suppress

from shared.classroom.archives import open_archive
from shared.classroom.choose import choose
from shared.classroom.names import HandInName, is_archive_name, shown
from shared.classroom.noticing import Noticed
from shared.classroom.store import Files
from shared.classroom.tree import (
    Entry,
    FileError,
    FolderTree,
    HandInError,
    Kind,
    Limits,
    Tree,
    kind_of_mode,
    open_regular,
)
from shared.grading.lab import Lab


class Taker:
    """One learner's files, gathered from their hand-ins.

    Args:
        folder: the open folder of submissions.
        wanted: the labs to take.
        known: all labs of this checkout.

    Attributes:
        files: what was taken.
        noticed: what was left out, or had no effect.
        problems: for each hand-in of which nothing can be used a sentence that says why.
    """

    def __init__(
        self, folder: int, wanted: Collection[Lab], known: Collection[Lab], limits: Limits
    ) -> None:
        self.wanted = wanted
        self.files: Files = {}
        self.noticed = Noticed()
        self.problems: list[str] = []
        self._late: dict[int, list[str]] = {}
        self._folder = folder
        self._known = known
        self._limits = limits

    def take(self, hand_ins: list[HandInName]) -> None:
        """Take what is graded, oldest first: of a lab that is there twice the last one counts.

        A late one counts like any other, and is noted.
        """
        loose = [h for h in hand_ins if self._is_source(h)]
        for hand_in in hand_ins:
            if hand_in not in loose:
                self._take_one(hand_in)
        if loose:
            files = {h.file: h.raw for h in loose}
            with closing(FolderTree.of_files(files, self._folder, self._limits)) as tree:
                hint = " ".join(h.raw for h in loose)
                late = [h.raw for h in loose if h.late]
                self._take_tree(tree, tree.entries, hint, late, one_by_one=True)
        for number, names in self._late.items():
            for name in names:
                self.noticed.add("late", name, number)

    def _take_one(self, hand_in: HandInName) -> None:
        """Take the labs out of one folder or archive."""
        name = hand_in.raw
        late = [name] if hand_in.late else []
        try:
            kind = self._kind(name)
            if kind == "folder":
                with closing(FolderTree(name, self._folder, self._limits)) as tree:
                    self._take_folder(tree, name, late)
            elif kind == "file":
                file = open_regular(name, self._folder)
                with closing(open_archive(file, name, self._limits)) as archive:
                    self._take_tree(archive, archive.entries, name, late)
            else:
                raise HandInError(f"it is a {kind}, which is never followed or opened")
        except (HandInError, FileError) as error:
            self.problems.append(f"{shown(name)} cannot be used: {error}.")

    def _take_folder(self, tree: FolderTree, name: str, late: list[str]) -> None:
        """A folder's own labs, and those of archives right in it, as in Moodle's download."""
        archives = [e for e in tree.entries if len(e.parts) == 1 and is_archive_name(e.name)]
        archives = [e for e in archives if e.kind == "file"][: self._limits.archives]
        for entry in archives:
            path = f"{name}/{entry.name}"
            try:
                opened = open_archive(tree.open(entry), entry.name, self._limits)
                with closing(opened) as archive:
                    self._take_tree(archive, archive.entries, path, late)
            except (HandInError, FileError) as error:
                self.problems.append(f"{shown(path)} cannot be used: {error}.")
        self._take_tree(tree, [e for e in tree.entries if e not in archives], name, late)

    def _take_tree(
        self,
        tree: Tree,
        entries: Collection[Entry],
        name: str,
        late: list[str],
        *,
        one_by_one: bool = False,
    ) -> None:
        """Read what is graded out of a tree; all of it, or nothing if some cannot be trusted.

        Args:
            late: names of what came after the deadline.
            one_by_one: its files join those that a lab has already.

        Raises:
            HandInError: the tree is damaged.
        """
        chosen = choose(entries, self.wanted, self._known, name, self.noticed, self._limits)
        if tree.bomb:
            self.noticed.add("archive bomb", name)
        places = {id(entry): (c, n) for c in chosen for n, entry in c.files.items()}
        taken: Files = defaultdict(dict)
        wanted = [entry for c in chosen for entry in c.files.values()]
        for entry, content in tree.read(wanted, self._limits.file_bytes):
            lab_files, file = places[id(entry)]
            number = lab_files.lab.number
            if isinstance(content, FileError):
                self.noticed.add(content.kind, entry.name, number)
            elif lab_files.given.get(file, content) != content:
                self.noticed.add("given file", file, number)
            else:
                taken[number][file] = content
        for lab_files in chosen:
            number = lab_files.lab.number
            if not taken[number].keys() & {task.file for task in lab_files.lab.tasks}:
                continue
            before = self.files.get(number, {})
            if before:
                self.noticed.add("handed in again", name, number)
            kept = before if one_by_one else {}
            self._late[number] = late
            self.files[number] = kept | taken[number] | lab_files.given

    def _kind(self, name: str) -> Kind:
        try:
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            raise HandInError(f"it cannot be read: {os.strerror(error.errno or 0)}") from error
        return kind_of_mode(status.st_mode)

    def _is_source(self, hand_in: HandInName) -> bool:
        """Whether it is a Python file by itself: platforms let learners hand in single files."""
        with suppress(OSError):
            mode = os.stat(hand_in.raw, dir_fd=self._folder, follow_symlinks=False).st_mode
            return hand_in.raw.endswith(".py") and stat.S_ISREG(mode)
        return False
