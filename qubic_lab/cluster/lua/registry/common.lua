-- What the registry's scripts share; each is run behind it.

-- Notes that a node was told to drain, or has gone: neither shows in its heartbeats.
local function note_change(node, now)
  redis.call('ZADD', key('changes'), now, node)
end

local function forget(node, now)
  redis.call('ZREM', key('beats'), node)
  redis.call('DEL', key('node', node))
  note_change(node, now)
end

-- Tells whether a session is that of the node's latest registration: 'ok', 'unknown' or 'other'.
local function check(node, session)
  local found = redis.call('HGET', key('node', node), 'session')
  if not found then
    return 'unknown'
  end
  return found == session and 'ok' or 'other'
end
