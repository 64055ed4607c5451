-- ARGV: consumer.
beat(ARGV[2], now_ms())
