"""Where events come from: the simulated market, published data sets, a log's noise."""
