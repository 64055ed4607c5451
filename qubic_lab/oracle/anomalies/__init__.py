"""What is unusual about bars: outliers, jumps, volumes and shapes of manipulation; each judged by the past alone."""
