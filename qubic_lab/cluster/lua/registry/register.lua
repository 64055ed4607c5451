-- ARGV: node, session, owner, registration. Returns 'ok', or 'owned' where somebody else's node of this name lives.
local node, session, owner, registration = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = now_ms()
local beat = redis.call('ZSCORE', key('beats'), node)
local before = redis.call('HGET', key('node', node), 'owner')
if beat and now - beat < limits.removed_ms and before and before ~= owner then
  return 'owned'
end
local draining = redis.call('HGET', key('node', node), 'draining')
forget(node)
redis.call('HSET', key('node', node), 'session', session, 'owner', owner, 'registration', registration, 'since', now,
  'state', '', 'draining', draining or '0')
redis.call('ZADD', key('beats'), now, node)
return 'ok'
