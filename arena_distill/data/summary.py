"""What loading did to a file, counted, so that nothing is repaired or dropped in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class LoadSummary:
    """Counts of one file's rows: read, used, dropped and repaired (by reason), and notes on the file as a whole."""

    file: str
    rows_read: int = 0
    rows_used: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def dropped(self, reason: str, count: int) -> None:
        """Count rows that are not used."""
        if count:
            self.drops[reason] += int(count)

    def repaired(self, reason: str, count: int) -> None:
        """Count rows or cells that were used after a change, or that are odd enough to mention."""
        if count:
            self.repairs[reason] += int(count)

    def note(self, text: str) -> None:
        """Record something that concerns the whole file, once."""
        if text not in self.notes:
            self.notes.append(text)

    def add(self, part: LoadSummary) -> None:
        """Add what was counted apart for the next rows of the file."""
        self.rows_read += part.rows_read
        self.drops.update(part.drops)
        self.repairs.update(part.repairs)
        for text in part.notes:
            self.note(text)

    def take(self) -> LoadSummary:
        """What was counted so far, as a summary of its own; counting begins anew."""
        taken = LoadSummary(self.file, self.rows_read, self.rows_used, self.drops, self.repairs, self.notes)
        self.rows_read = self.rows_used = 0
        self.drops, self.repairs, self.notes = Counter(), Counter(), []
        return taken

    def as_dict(self) -> dict[str, object]:
        """For manifests."""
        return {
            "file": self.file,
            "rows_read": self.rows_read,
            "rows_used": self.rows_used,
            "dropped": dict(self.drops),
            "repaired": dict(self.repairs),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.rows_read:,} rows read, {self.rows_used:,} used"]
        lines += [f"  dropped  {count:>7,}  {reason}" for reason, count in self.drops.items()]
        lines += [f"  counted  {count:>7,}  {reason}" for reason, count in self.repairs.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
