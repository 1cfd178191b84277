"""Every Prometheus metric, its exporter, rules and dashboards."""
