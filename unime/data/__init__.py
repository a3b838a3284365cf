"""Sources to tables: ITEMS with PAIRS, TASKS or CAPTION_QUERIES, and a report of everything that was left out and why."""
