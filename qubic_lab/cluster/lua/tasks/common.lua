-- What the queue's scripts share; each is run behind it.
local PRIORITIES = {'high', 'normal', 'low'}
local GROUP = 'dispatchers'
local NOBODY = 'nobody' -- in the group's lists, the holder of what waits for another try

local function count(what)
  redis.call('HINCRBY', key('counts'), what, 1)
end

-- Wakes all who wait for a task.
local function wake(id)
  redis.call('XADD', key('wake'), 'MAXLEN', 1, '*', 'task', id)
end

-- Tells all who wait for a task, or work on it, that there is news of it.
local function ring(id, what)
  redis.call('PUBLISH', key('bell'), id .. ' ' .. what)
end

-- Notes a sign of life. Who was silent for long had lost Redis, and so may others: it holds back before it reclaims.
local function beat(consumer, now)
  local last = redis.call('ZSCORE', key('beats'), consumer)
  if last and now - last > limits.silent_ms then
    redis.call('HSET', key('back'), consumer, now)
  end
  redis.call('ZADD', key('beats'), now, consumer)
end

-- Tells whether a token is that of the task's latest lease, and nobody has taken that back.
local function holds(id, token)
  local found = redis.call('HMGET', key('task', id), 'state', 'token')
  if found[1] == 'processing' and found[2] == token then
    return true
  end
  count('fenced')
  return false
end

-- Adds items to a task's progress, from item number `start` on; those that it has are the same call again.
local function add_items(id, start, items, text)
  local known = tonumber(redis.call('HGET', key('task', id), 'items') or 0)
  if start > known then
    return 'progress begins with item ' .. start .. ', known are ' .. known
  end
  if start == known and items > 0 then
    redis.call('RPUSH', key('progress', id), text)
    redis.call('HINCRBY', key('task', id), 'items', items)
    return nil, true
  end
end

local function end_lease(id, consumer)
  redis.call('ZREM', key('leases'), id)
  if consumer then
    redis.call('SREM', key('held', consumer), id)
  end
end

-- Makes a task's last transition, to `state`; `field` (result or why) takes `text`. The log shows if it ever came twice.
local function finish(id, state, field, text)
  local task, done = key('task', id), key('done', id)
  local found = redis.call('HMGET', task, 'priority', 'entry', 'consumer', 'token', 'key')
  local priority, entry, consumer, token = found[1], found[2], found[3], found[4]
  local stream = key('stream', priority)
  end_lease(id, consumer)
  redis.call('ZREM', key('again', priority), id)
  if redis.call('EXISTS', stream) == 1 then
    redis.pcall('XACK', stream, GROUP, entry)
    redis.call('XDEL', stream, entry)
  end
  redis.call('HSET', task, 'state', state, field, text)
  redis.call('HDEL', task, 'payload') -- nobody works on it any more, and it may be large
  redis.call('XADD', key('log'), 'MAXLEN', '~', limits.most_logged, '*',
    'task', id, 'state', state, 'token', token or '0', 'consumer', consumer or '')
  redis.call('XADD', done, '*', 'state', state)
  for _, kept in ipairs({task, done, key('progress', id), key('key', found[5])}) do
    redis.call('PEXPIRE', kept, limits.keep_ms)
  end
  count(state)
  ring(id, state)
end

-- Ends a try without an answer: the task waits again, before all that came after it, or has had its last try.
local function put_back(id, why)
  local task = key('task', id)
  local found = redis.call('HMGET', task, 'priority', 'entry', 'consumer', 'sequence', 'tries', 'story', 'payload')
  local priority, entry, consumer, tries = found[1], found[2], found[3], found[5]
  local story = (found[6] and found[6] .. '\n' or '') .. 'try ' .. tries .. ' by ' .. consumer .. ': ' .. why
  redis.call('HSET', task, 'story', story)
  if tonumber(tries) >= limits.most_tries then
    finish(id, 'dead', 'why', why)
    redis.call('XADD', key('dead'), 'MAXLEN', '~', limits.most_dead, '*',
      'task', id, 'payload', found[7], 'story', story)
    return
  end
  end_lease(id, consumer)
  redis.call('HSET', task, 'state', 'pending')
  redis.call('XCLAIM', key('stream', priority), GROUP, NOBODY, 0, entry, 'JUSTID')
  redis.call('ZADD', key('again', priority), found[4], id)
  wake(id)
end
