"""Kubernetes manifests: hand-written ones, and those that are made of facts which stand somewhere else already."""
