-- ARGV: an instant that an earlier call has returned, or '0'. Removes nodes that were silent for too long. Returns the
-- instant now; what has changed from the given one on, or all where that is too long ago: of each node its registration,
-- state, ms since its latest heartbeat, ms since its registration, whether it is being drained; the names of those that
-- have gone; and 1 where these are all nodes.
local now, since = now_ms(), tonumber(ARGV[2])
local oldest = now - limits.removed_ms
for _, node in ipairs(redis.call('ZRANGEBYSCORE', key('beats'), '-inf', oldest)) do
  forget(node, now)
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', key('changes'), '-inf', oldest)) do
  redis.call('ZREM', key('changes'), node)
end

local whole = since <= oldest or since > now
local names, gone = redis.call('ZRANGEBYSCORE', key('beats'), whole and '-inf' or since, '+inf'), {}
for _, node in ipairs(whole and {} or redis.call('ZRANGEBYSCORE', key('changes'), since, '+inf')) do
  local beat = redis.call('ZSCORE', key('beats'), node)
  if not beat then
    table.insert(gone, node)
  elseif tonumber(beat) < since then
    table.insert(names, node)
  end
end

local nodes = {}
for _, node in ipairs(names) do
  local found = redis.call('HMGET', key('node', node), 'registration', 'state', 'since', 'draining')
  local beat = redis.call('ZSCORE', key('beats'), node)
  table.insert(nodes, {found[1], found[2], now - beat, now - found[3], found[4]})
end
return {now, nodes, gone, whole and 1 or 0}
