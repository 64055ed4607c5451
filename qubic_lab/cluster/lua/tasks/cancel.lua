-- ARGV: id, who cancels it because its client has left, or ''. Then it goes on where anybody else has asked for it since;
-- and its key is free, so that a client that only comes back later gets another task. Returns the state that the task has
-- then; '' where there is none.
local id, asker = ARGV[2], ARGV[3]
local found = redis.call('HMGET', key('task', id), 'state', 'asker', 'key')
local state = found[1]
if (state == 'pending' or state == 'processing') and (asker == '' or asker == found[2]) then
  state = 'cancelled'
  finish(id, state, 'why', asker == '' and 'somebody cancelled it' or 'its client left')
  if asker ~= '' then
    redis.call('DEL', key('key', found[3]))
  end
end
return state or ''
