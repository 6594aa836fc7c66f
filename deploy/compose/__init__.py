"""The one-shot jobs of deploy/compose.yaml, which run in our own image."""
