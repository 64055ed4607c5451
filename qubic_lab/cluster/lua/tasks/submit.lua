-- ARGV: id, payload, priority, idempotency key, what is carried beside the payload, who asks for the client, how many ms it
-- may wait ('': for ever). Returns what happened, and the id of the task that has this key; where it would wait for longer,
-- how many ms at the pace at which tasks are taken now.
local FEWEST = 8 -- tasks that tell a pace
local now, patience = now_ms(), tonumber(ARGV[8])
local id, payload, priority, idempotency_key, asker = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[7]

local first = redis.call('GET', key('key', idempotency_key))
local digest = redis.sha1hex(payload)
local known = first and redis.call('HGET', key('task', first), 'digest')
if known then
  redis.call('HSET', key('task', first), 'asker', asker)
  return {known == digest and 'known' or 'differs', first}
end

local waiting = -redis.call('ZCARD', key('leases'))
for _, each in ipairs(PRIORITIES) do
  waiting = waiting + redis.call('XLEN', key('stream', each))
end
if waiting >= limits.most_waiting then
  return {'busy', ''}
end

local pace = redis.call('HMGET', key('pace'), 'taken', 'since')
local taken = tonumber(pace[1] or 0)
if patience and priority ~= 'high' and waiting > 0 and taken >= FEWEST then
  local wait = math.ceil(waiting * (now - pace[2]) / taken)
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
