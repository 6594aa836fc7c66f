"""CFO Sync: books every paid crypto invoice as one revenue transaction, and proves it."""

from consumer.service import CFOSyncService

__all__ = ["CFOSyncService"]
