-- What the registry's scripts share; each is run behind it.

local function forget(node)
  redis.call('ZREM', key('beats'), node)
  redis.call('DEL', key('node', node))
end

-- Tells whether a session is that of the node's latest registration: 'ok', 'unknown' or 'other'.
local function check(node, session)
  local found = redis.call('HGET', key('node', node), 'session')
  if not found then
    return 'unknown'
  end
  return found == session and 'ok' or 'other'
end
