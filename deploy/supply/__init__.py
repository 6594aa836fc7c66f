"""What the project is made of, and whether it has known holes: `make audit` and `make sbom`."""
