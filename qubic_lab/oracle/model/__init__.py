"""What every part of the oracle shares: bars, prices, texts, coins and time."""
