"""CFO Sync: books every paid crypto invoice as one revenue transaction, and proves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.service import CFOSyncService
else:

    def __getattr__(name: str) -> object:
        # Loaded when somebody asks for it: `cfo-sync --help` needs no database driver.
        if name == "CFOSyncService":
            from consumer.service import CFOSyncService

            return CFOSyncService
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["CFOSyncService"]
