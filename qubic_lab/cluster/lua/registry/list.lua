-- Removes those that were silent for too long. Returns for each other node: registration, state, ms since its latest
-- heartbeat, ms since its registration, whether it is being drained.
local now = now_ms()
for _, node in ipairs(redis.call('ZRANGEBYSCORE', key('beats'), '-inf', now - limits.removed_ms)) do
  forget(node)
end
local nodes = {}
local beats = redis.call('ZRANGE', key('beats'), 0, -1, 'WITHSCORES')
for place = 1, #beats, 2 do
  local found = redis.call('HMGET', key('node', beats[place]), 'registration', 'state', 'since', 'draining')
  table.insert(nodes, {found[1], found[2], now - beats[place + 1], now - found[3], found[4]})
end
return nodes
