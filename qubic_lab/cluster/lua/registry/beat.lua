-- ARGV: node, session, state. Returns 'ok', 'unknown' or 'other'.
local node, session, state = ARGV[2], ARGV[3], ARGV[4]
local found = check(node, session)
if found == 'ok' then
  redis.call('HSET', key('node', node), 'state', state)
  redis.call('ZADD', key('beats'), now_ms(), node)
end
return found
