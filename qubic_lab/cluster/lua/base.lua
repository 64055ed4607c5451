-- What every script begins with; each is run behind it, as one step. KEYS[1]: a prefix from which every key is made.
-- ARGV[1]: settings (JSON, times in ms). Time is Redis's own, plus an offset that only tests set.
local limits = cjson.decode(ARGV[1])

local function key(...)
  return KEYS[1] .. ':' .. table.concat({...}, ':')
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + limits.clock_offset_ms
end
