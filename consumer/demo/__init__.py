"""`cfo-sync demo`: the guide's story, played on the configured stack with real data, and every promise proved."""

from consumer.demo.keeping import keep
from consumer.demo.story import play

__all__ = ["keep", "play"]
