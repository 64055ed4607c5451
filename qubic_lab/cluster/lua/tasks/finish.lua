-- ARGV: id, token, state, field, text, code of an error or ''; the last items of the progress as for progress.lua: number
-- of the first one, how many, JSON of them. Returns 1, or 0 where the lease was taken back.
local id, token, state, field, text, code = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local found = redis.call('HMGET', key('task', id), 'state', 'token')
if found[1] == state and found[2] == token then
  return 1 -- the same call again, whose answer was lost with the connection
end
if not holds(id, token) then
  return 0
end
local gap = add_items(id, tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10])
if gap then
  return redis.error_reply(gap)
end
if code ~= '' then
  redis.call('HSET', key('task', id), 'code', code)
end
finish(id, state, field, text)
return 1
