-- ARGV: consumer. Returns id, payload, token, number of the try and what is carried with the next task; where none waits, the last entry of
-- the stream that tells of the next one.
local consumer = ARGV[2]
local now = now_ms()
beat(consumer, now)

local function read_new(stream)
  local read = redis.pcall('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', stream, '>')
  if read and read.err then -- the first take of all makes the group
    redis.call('XGROUP', 'CREATE', stream, GROUP, 0, 'MKSTREAM')
    read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', stream, '>')
  end
  return read and read[1][2][1][2][2] -- the first stream's first entry's only value
end

-- What waits for another try was in the stream before all that is new.
local function next_of(priority)
  local stream, again = key('stream', priority), key('again', priority)
  local id = redis.call('ZRANGE', again, 0, 0)[1]
  if not id then
    return read_new(stream)
  end
  redis.call('ZREM', again, id)
  redis.call('XCLAIM', stream, GROUP, consumer, 0, redis.call('HGET', key('task', id), 'entry'), 'JUSTID')
  return id
end

for _, priority in ipairs(PRIORITIES) do
  local id = next_of(priority)
  if id then
    local task = key('task', id)
    local token = redis.call('INCR', key('token'))
    local tries = redis.call('HINCRBY', task, 'tries', 1)
    redis.call('HSET', task, 'state', 'processing', 'token', token, 'consumer', consumer)
    redis.call('ZADD', key('leases'), now + limits.lease_ms, id)
    redis.call('SADD', key('held', consumer), id)
    count('taken')
    return {id, redis.call('HGET', task, 'payload'), token, tries, redis.call('HGET', task, 'carried')}
  end
end

local about = redis.pcall('XINFO', 'STREAM', key('wake'))
for place = 1, #about, 2 do
  if about[place] == 'last-generated-id' then
    return {about[place + 1]}
  end
end
return {'0-0'}
