-- ARGV: id, token, consumer. Returns 1, or 0 where the lease was taken back.
local id, token, consumer = ARGV[2], ARGV[3], ARGV[4]
local now = now_ms()
beat(consumer, now)
if not holds(id, token) then
  return 0
end
redis.call('ZADD', key('leases'), now + limits.lease_ms, id)
return 1
