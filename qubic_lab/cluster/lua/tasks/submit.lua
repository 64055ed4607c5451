-- ARGV: id, payload, priority, idempotency key, what is carried beside the payload, who asks for the client, how many ms it
-- may wait ('': for ever), for how many ms a task is held ('': not known), how many tasks nodes could begin now. Returns
-- what happened, and the id of the task that has this key; where it would wait for longer, how many ms.
now_ms() -- the clock goes on
local patience, held_ms, free = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local id, payload, priority, idempotency_key, asker = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[7]

local first = redis.call('GET', key('key', idempotency_key))
local digest = redis.sha1hex(payload)
local known = first and redis.call('HGET', key('task', first), 'digest')
if known then
  redis.call('HSET', key('task', first), 'asker', asker)
  return {known == digest and 'known' or 'differs', first}
end

local held = redis.call('ZCARD', key('leases'))
local waiting = -held
for _, each in ipairs(PRIORITIES) do
  waiting = waiting + redis.call('XLEN', key('stream', each))
end
if waiting >= limits.most_waiting then
  return {'busy', ''}
end

if patience and held_ms and priority ~= 'high' and waiting > 0 then
  local wait = math.ceil(waiting * held_ms / math.max(1, held + free)) -- Little's law
  if wait > patience then
    return {'late', tostring(wait)}
  end
end

if tonumber(redis.call('INFO', 'memory'):match('used_memory:(%d+)')) > limits.most_memory_bytes then
  return {'full', ''}
end

local entry = redis.call('XADD', key('stream', priority), '*', 'task', id)
redis.call('HSET', key('task', id), 'state', 'pending', 'payload', payload, 'digest', digest,
  'carried', ARGV[6], 'priority', priority, 'asker', asker, 'tries', 0, 'entry', entry, 'sequence', redis.call('INCR', key('sequence')), 'key', idempotency_key)
redis.call('SET', key('key', idempotency_key), id)
count('submitted')
wake(id)
return {'new', id}
