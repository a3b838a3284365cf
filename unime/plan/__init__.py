"""What a run will cost: counts from the data tables or the configuration, tokens from real prompts, seconds from a short measurement."""
