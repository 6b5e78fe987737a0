"""Training configuration: options, recipes, data-dependent defaults, and checks of conflicting options. Needs no torch."""
