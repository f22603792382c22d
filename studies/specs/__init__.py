"""The project's own studies: one module each, with its `SPEC`. `studies.finding` finds them by name."""
