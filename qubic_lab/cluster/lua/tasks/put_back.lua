-- ARGV: id, token, why. Returns 1, or 0 where the lease was taken back.
local id, token, why = ARGV[2], ARGV[3], ARGV[4]
if not holds(id, token) then
  return 0
end
put_back(id, why)
return 1
