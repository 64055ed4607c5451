"""Several replicas as one service: which of them are healthy, which one gets a request, which requests wait."""
