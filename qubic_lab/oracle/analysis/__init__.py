"""What bars say at their end: indicators, levels, trend, forecasts, anomalies, ratings."""
