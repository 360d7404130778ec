"""Several workers behind one evaluator, on the devices of one machine or of a cluster."""
