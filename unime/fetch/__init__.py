"""Published data and weights: what there is, how it is fetched, how own copies take its place."""
