"""Tasks: how a record becomes an example, a head, a loss, a prediction and a metric."""
