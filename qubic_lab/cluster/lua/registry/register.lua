-- ARGV: node, new session, owner, address, registration. Returns the session that holds from now on; '' where somebody
-- else's node of this name lives.
local node, session, owner, address, registration = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local now = now_ms()
local beat = redis.call('ZSCORE', key('beats'), node)
local found = redis.call('HMGET', key('node', node), 'owner', 'session', 'address', 'draining')
local alive = beat and now - beat < limits.removed_ms
if alive and found[1] ~= owner then
  return ''
end
-- Two processes cannot listen at one address: it is the one that is known, whose call was repeated or came late.
if alive and found[3] == address then
  session = found[2]
end
redis.call('HSET', key('node', node), 'session', session, 'owner', owner, 'address', address,
  'registration', registration, 'since', now, 'state', '', 'draining', found[4] or '0')
redis.call('ZADD', key('beats'), now, node)
return session
