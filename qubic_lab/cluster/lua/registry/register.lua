-- ARGV: node, new session, owner, address, identity, registration. Returns the session that holds from now on; '' and
-- the known address where another node of this name lives.
local node, session, owner, address, identity, registration = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local now = now_ms()
local beat = redis.call('ZSCORE', key('beats'), node)
local found = redis.call('HMGET', key('node', node), 'owner', 'session', 'address', 'draining', 'identity')
local alive = beat and now - beat < limits.removed_ms
if alive and (found[1] ~= owner or found[5] ~= identity) then
  return {'', found[3]}
end
-- Its call was repeated or came late, or it was started again at the same address.
if alive and found[3] == address then
  session = found[2]
end
redis.call('HSET', key('node', node), 'session', session, 'owner', owner, 'address', address,
  'identity', identity, 'registration', registration, 'since', now, 'state', '', 'draining', found[4] or '0')
redis.call('ZADD', key('beats'), now, node)
return {session, address}
