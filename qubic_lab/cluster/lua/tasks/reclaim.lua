-- ARGV: consumer. Returns the ids of the tasks that were taken back; none while the consumer itself has just come back.
local consumer = ARGV[2]
local now = now_ms()
beat(consumer, now)

local back = redis.call('HGET', key('back'), consumer)
if back and now - back < limits.hold_ms then
  return {}
end

local reclaimed = {}
local function reclaim(id, why)
  put_back(id, why)
  count('reclaimed')
  table.insert(reclaimed, id)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '-inf', '(' .. now)) do
  reclaim(id, 'its lease ran out')
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', key('beats'), '-inf', '(' .. now - limits.gone_ms)) do
  for _, id in ipairs(redis.call('SMEMBERS', key('held', gone))) do
    reclaim(id, 'the dispatcher was gone')
  end
  redis.call('ZREM', key('beats'), gone)
  redis.call('HDEL', key('back'), gone)
  for _, priority in ipairs(PRIORITIES) do
    redis.pcall('XGROUP', 'DELCONSUMER', key('stream', priority), GROUP, gone) -- holds nothing any more
  end
end
return reclaimed
