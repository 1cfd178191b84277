"""The benchmark of the join of labels: `exfm bench das`."""
