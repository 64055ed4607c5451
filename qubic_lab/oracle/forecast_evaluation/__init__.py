"""What forecasts were worth: those of the past judged beside simpler ones, and by how sure they said they were."""
