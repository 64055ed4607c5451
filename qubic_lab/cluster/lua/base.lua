-- What every script begins with; each is run behind it, as one step. KEYS[1]: a prefix from which every key is made.
-- ARGV[1]: settings (JSON, times in ms).
local limits = cjson.decode(ARGV[1])

local function key(...)
  return KEYS[1] .. ':' .. table.concat({...}, ':')
end

-- A clock that only goes forward, by the time that passes on Redis's own clock between two scripts, at most
-- `most_step_ms` of it: when that clock is set, no lease runs out early and none lives on. Tests add an offset.
local function now_ms()
  local time = redis.call('TIME')
  local redis_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local last = redis.call('HMGET', key('clock'), 'redis_ms', 'ms')
  local passed = math.max(0, math.min(redis_ms - (last[1] or redis_ms), limits.most_step_ms))
  local now = (last[2] or redis_ms) + passed
  redis.call('HSET', key('clock'), 'redis_ms', redis_ms, 'ms', now)
  return now + limits.clock_offset_ms
end
