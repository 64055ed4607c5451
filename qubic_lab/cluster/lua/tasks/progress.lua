-- ARGV: id, token, consumer, number of the first item, how many, JSON of them. Returns 1, or 0 where the lease was taken
-- back. The lease is renewed, too.
local id, token, consumer, start, items, text = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local now = now_ms()
beat(consumer, now)
if not holds(id, token) then
  return 0
end
redis.call('ZADD', key('leases'), now + limits.lease_ms, id)
local gap, is_new = add_items(id, start, items, text)
if gap then
  return redis.error_reply(gap)
end
if is_new then
  ring(id, 'progress')
end
return 1
